"""gatewayd"""
