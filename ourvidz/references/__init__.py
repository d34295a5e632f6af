"""Pictures that jobs refer to.

Owns: which reference may be read, turning any allowed file into an RGB picture, cropping it to an aspect.
Speaks: references as callers write them, bytes, pictures. No storage back ends, no models, no jobs' stories.
"""
