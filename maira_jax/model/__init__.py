"""The MAIRA-2 architecture: DINOv2, a four-layer projector and Llama, as pure functions over a nested dict."""
