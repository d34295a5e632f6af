"""Safety: which texts are refused whatever a caller sends.

Owns the safety gate, the readings of a text, the term lists, the patterns of ages and numbers, and the
moderation client.
Handles texts and terms; knows no queues, HTTP routes or models.
"""
