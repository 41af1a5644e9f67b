"""How thousands of memos are kept, found and brought in step."""
