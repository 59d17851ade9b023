"""Files that are read: JSON by schema, arrays by their headers, finished runs by their digests."""
