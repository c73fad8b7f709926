"""Models that score a video against a text; every one has `encode_video`, `encode_text` and `similarity`."""
