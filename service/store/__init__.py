"""What the service remembers, in SQL. One module a side; everything outside works on plain dataclasses.

database.py    engine, transactions, and the one place where the database's errors become ours
schema.py      the tables; migrations/ makes and changes them
servers.py     servers, their owners and epochs        certificates.py  enrolment tokens and certificates
points.py      rows about points, and pulls            commands.py      what agents are asked to do
runs.py        runs and steps                          plans.py audit.py
"""
