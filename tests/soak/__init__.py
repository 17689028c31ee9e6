"""Faults under load, beside a twin without the app: load -> two servers -> fault -> ledger -> report."""
