"""Boot repair of Linux replicas: each module looks at one thing, and drafts the least change that mends it."""
