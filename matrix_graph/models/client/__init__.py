"""The parts of `ChatVLLM`: its HTTP, its wire format, and what LangChain asks of a chat model."""
