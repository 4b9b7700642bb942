"""Fine-tune: labelled rows and a base model in, a merged and verified bf16 checkpoint out.

    config        one YAML file, checked key by key
    formats       jsonl, csv, parquet, CoNLL and hub data sets as raw rows that know their line
    annotations   entities as annotation tools export them
    data          raw rows checked into the canonical form, split into train and test
    split         which rows are held out, drawn by their places
    spool         rows on disk, which may be more than the memory holds
    previous      what training goes on from; continual: what is forgotten by it
    parents       rows that a base model or a teacher was trained on, or held out: they stay what they were
    tokens        canonical rows as token ids with the targets of the loss
    models        base models with a task's head, adapters, and what vLLM can serve
    preparation   what a run begins with, once nothing is wrong with it
    distillation  learning from a teacher's answers
    depth         base models with fewer blocks
    training      Trainer, for the classifiers; sft: TRL's SFTTrainer, for generation
    packing       several short rows of generation in one sequence
    processes     several of them, by `accelerate launch`
    run_state     what is saved meanwhile
    temperature   calibrated probabilities: confidence matches accuracy
    evaluation    held-out quality, through tuneserve.quality
    calibration   training rows that the checkpoint keeps for quantizing
    merging       adapter into base in fp32, saved in bf16, compared before it is kept
    report        `validate`, and tables for people
    run_report    what OUTPUT-report holds; run_sections: what its page shows; figures: how that is drawn
    pipeline      `finetune`: all of it in order
    search        the same many times over, for the best settings; search_space says among which

Knows nothing of quantization and serving; the checkpoint directory is all that they share.
"""
