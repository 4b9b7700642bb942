"""Fine-tune: labelled rows and a base model in, a merged and verified bf16 checkpoint out.

    config        one YAML file, checked key by key
    data/         rows: read (formats, annotations), checked (canonical), split (dataset, split), kept on disk (spool),
                  made more (augmentation), into token ids (tokens), several in one sequence (packing); what a model
                  that training goes on from has seen (previous, parents), and what the checkpoint keeps (kept_rows)
    model/        base models with a head (base_models), which weights learn (adapters), fewer blocks (layer_drop)
    eval/         quality on held-out rows (evaluation), calibrated probabilities (temperature)
    train/        Trainer for the classifiers (training, losses), TRL's SFTTrainer for generation (sft), a teacher
                  (distillation), what is forgotten (continual), several processes (distributed), --resume (run_state)
    export/       adapter into base in fp32 (merging), saved in bf16 (rounding), compared before it is kept
    preparation   what a run begins with, once nothing is wrong with it
    report/       `validate` and tables on stdout (tables), OUTPUT-report (page, sections, plots)
    pipeline      `finetune`: all of it in order
    soup          several runs' weights averaged
    search/       the same many times over, for the best settings

Each imports from those above it. Knows nothing of quantization and serving; the checkpoint directory is all that they
share. Called, the package is `tuneserve.api.finetune`.
"""

import sys

from tuneserve.verbs import Verb

sys.modules[__name__].__class__ = Verb
