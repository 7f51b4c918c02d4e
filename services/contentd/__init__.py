"""contentd"""
