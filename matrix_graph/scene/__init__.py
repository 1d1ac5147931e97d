"""The social scene: a LangGraph state machine that plays a draft answer through."""
