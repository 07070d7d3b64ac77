"""The options of kombu"""
