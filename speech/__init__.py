"""Ground floor: records, manifests, audio, text and model families. Imports neither Ray nor vLLM."""
