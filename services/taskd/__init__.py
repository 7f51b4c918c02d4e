"""taskd"""
