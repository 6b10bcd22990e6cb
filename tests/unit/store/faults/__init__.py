"""What can go wrong around a store, done to it: kills, power cuts, full disks, forged files.

Each function does its worst so many times, asserts what must hold, and returns what it has
counted. The tests call them with small numbers, ``bench/torture.py`` with large ones.
"""
