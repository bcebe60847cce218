"""Text to tokens: files to rows, rows to documents, documents to Megatron's indexed dataset."""
