"""imaged"""
