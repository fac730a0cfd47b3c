"""Verification: read points back from the medium, name what is damaged, and heal it where the truth can be proven.

    findings.py   what was found: plain data that imports nothing
    readback.py   reading one volume at the disk's speed, each block compared with its digest
    verifier.py   one point: manifest, row, digests, structure, data
    data.py       damaged blocks: which points have them, and where a good copy lies
    doubts.py     blocks of the newest point that the next push has to send again
    database.py   what SQLite says of its own file
    http.py       the same for operators

Nothing is signed here: a point is only ever made what its signed root says already.
"""
