"""Fine-tune: labelled rows and a base model in, a merged and verified bf16 checkpoint out.

    fields        what the values of a training file may be
    config        one YAML file, checked key by key
    data/         rows: read (formats, annotations), checked (schema, preferences), split (dataset, split), kept on disk
                  (disk_rows), augmented (augmentation, back_translation), given wrong passages (negatives), tokenized
                  (tokens), packed into sequences (packing); what the model that a run continues from has seen
                  (previous, parents), and the rows a checkpoint keeps (kept_rows)
    model/        base models with a head (base_models), trainable weights (adapters), fewer blocks (layer_drop), how
                  an encoder pools (pooling)
    eval/         quality on held-out rows (evaluation), written answers (writing), calibrated probabilities
                  (temperature)
    train/        Trainer for the classifiers (training, losses), embeddings (contrastive) and ranking (ranking), TRL's
                  SFTTrainer for generation (sft), its DPO and KTO (preference), a teacher (distillation), forgetting
                  (continual), several processes (distributed), --resume (run_state)
    export/       adapter merged into its base in fp32 (merging), saved in bf16 (rounding), verified before it is kept
    preparation   everything checked and made ready before training starts
    report/       `validate` and tables on stdout (tables), OUTPUT-report (page, sections, plots)
    pipeline      `finetune`: all of it in order
    soup          the weights of several runs averaged
    search/       hyperparameter search: many runs, for the best settings

Each imports only from those above it. The package knows nothing of quantization and serving; the checkpoint directory
is all that they share. From Python, call `tuneserve.api.finetune`.
"""

import sys

from tuneserve.verbs import Verb

sys.modules[__name__].__class__ = Verb
