"""Images, prompts and tokens, as MAIRA-2 reads them."""
