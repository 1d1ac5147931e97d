"""The parts of `VLLMServer`: how the engine is started, watched, restarted and ended."""
