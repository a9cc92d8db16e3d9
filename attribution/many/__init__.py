"""Effects over the prompts of a data set."""
