"""Documents in which others say endpoints or prices: where they come from, how they are read."""

from adapters.documents.feed import Document, Feed, Reader
from adapters.documents.file import FileFeed
from adapters.documents.http import HttpFeed
from adapters.documents.parse import read_endpoints, read_price

__all__ = ["Document", "Feed", "FileFeed", "HttpFeed", "Reader", "read_endpoints", "read_price"]
