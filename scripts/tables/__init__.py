"""The papers' tables: what their rows are, what has been measured of them, what they cost, how they are shown."""
