"""metadatad"""
