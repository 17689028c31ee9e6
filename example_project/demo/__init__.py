"""The shop under load, with a collector and a scrape: one request as line, trace and samples."""
