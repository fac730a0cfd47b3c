"""The receiver: takes pushes, makes recovery points, serves pulls, keeps and checks what it holds."""
