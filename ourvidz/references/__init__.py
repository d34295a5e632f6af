"""Pictures that jobs refer to.

Owns: which reference may be read, turning any allowed file into an upright RGB picture and nothing else.
Speaks: references as callers write them, bytes, pictures. No storage back ends, no models, no jobs' stories.
"""
