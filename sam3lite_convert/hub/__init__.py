"""Names, downloads and ranges on the Hub, and its errors."""
