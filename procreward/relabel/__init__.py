"""Put dense rewards into recorded datasets."""
