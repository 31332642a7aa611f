"""One client for language models: requests in, answers out; cache, rate limit, batch API and egress guard inside."""
