"""Feedback: what people think of answers, as rows that finetune reads."""
