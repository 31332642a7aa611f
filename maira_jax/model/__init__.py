"""The MAIRA-2 architecture: DINOv2, a projector and Llama, as pure functions over a nested dict of parameters.

`maira2` puts the parts together, `sites` names the places where activations are read and edited, `layers` says how a
part is written, and `sharding` lays parameters on a mesh of devices.
"""
