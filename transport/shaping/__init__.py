"""The rate at which bytes leave: token buckets, the shaper, the channel model, and the account of each
link.
"""
