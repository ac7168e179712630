"""The controller's side of the transport: documents out, documents in, and what people say."""

from controlplane.post.directory import Post
from controlplane.post.said import say

__all__ = ["Post", "say"]
