"""The effect of each of many latents over many prompts."""
