"""The model's side: the client, the vLLM server that it talks to, and the small bundled model."""
