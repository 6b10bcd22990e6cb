"""What can go wrong around a store or a server, done to it: kills, power cuts, forged files.

Each function does its worst so many times, asserts what must hold, and returns what it has
counted. The tests call them with small numbers, ``python -m tests.faults --long`` with large ones.
"""
