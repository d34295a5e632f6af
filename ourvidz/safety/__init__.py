"""What is never generated, whatever a caller sends.

Owns: the gate, how text is normalised before it is judged, the term lists.
Speaks: texts, terms, signals. No jobs, no HTTP, no models.
"""
