"""Safety: which texts are refused whatever a caller sends.

Owns the safety gate, the normalisation of text before matching, the term lists, and the moderation client.
Handles texts and terms; knows no queues, HTTP routes or models.
"""
