"""tiny-wan: how the small checkpoint of Wan's text-to-video classes is made.

Owns: its parts, its tokenizer, the training of its VAE and of its transformer with the text encoder.
Speaks: clips of the world, latents, captions, losses. No jobs, no queues.
"""
