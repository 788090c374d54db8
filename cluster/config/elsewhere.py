"""What other frameworks call our keys, for a hint beside `unknown key` (docs/coming-from-other-systems.md)."""

from __future__ import annotations

_NAMES = {
    "name": "run_name experiment_name exp_name",
    "steps": "max_steps max_num_steps total_training_steps num_train_steps num_train_epochs total_epochs num_epochs",
    "seed": "random_seed data_seed",
    "runs_dir": "output_dir default_local_dir save_path ckpt_dir checkpoint_dir",
    "staleness": "max_trajectory_age_steps max_off_policy_threshold max_staleness max_head_offpolicyness",
    "placement": "vllm_mode hybrid_engine colocate colocated colocate_all_models",
    "model.path": "model_name_or_path model_name pretrain model_path hf_model_path model_id",
    "data.train": "train_file train_files dataset dataset_name dataset_path train_dataset prompt_data",
    "data.valid": "val_file val_files val_data eval_dataset validation_file",
    "data.batch_prompts": "batch_size train_batch_size per_device_train_batch_size num_prompts_per_step "
    "rollout_batch_size gen_batch_size train_global_batch_size global_batch_size",
    "sampling.group_size": "num_generations num_generations_per_prompt rollout_n n n_samples_per_prompt "
    "num_return_sequences n_samples",
    "sampling.max_new_tokens": "max_completion_length max_response_length response_length generate_max_len max_tokens",
    "engines.count": "num_engines vllm_num_engines num_replicas",
    "engines.max_model_len": "vllm_max_model_length max_prompt_length max_seq_len max_seq_length prompt_max_len",
    "engines.gpus_per_engine": "tensor_parallel_size tensor_model_parallel_size vllm_tensor_parallel_size",
    "engines.gpu_memory_utilization": "vllm_gpu_memory_utilization mem_fraction_static",
    "engines.dtype": "bf16 fp16 torch_dtype precision param_dtype",
    "rewards.items": "reward_funcs reward_func reward_function custom_reward_function reward_weights",
    "learner.ranks": "n_gpus_per_node num_gpus world_size nproc_per_node actor_num_gpus_per_node num_processes",
    "learner.lr": "learning_rate actor_learning_rate base_lr",
    "learner.warmup_steps": "lr_warmup_steps num_warmup_steps warmup_ratio lr_warmup_ratio lr_warmup_steps_ratio",
    "learner.decay": "lr_scheduler_type lr_scheduler warmup_style",
    "learner.max_grad_norm": "grad_clip clip_grad gradient_clipping max_norm",
    "learner.beta1": "adam_beta1",
    "learner.beta2": "adam_beta2",
    "learner.micro_batch_tokens": "gradient_accumulation_steps ppo_micro_batch_size ppo_micro_batch_size_per_gpu "
    "micro_batch_size micro_train_batch_size train_micro_batch_size ppo_max_token_len_per_gpu train_mb_tokens",
    "learner.updates_per_step": "num_iterations ppo_epochs max_epochs num_ppo_epochs ppo_mini_batch_size",
    "learner.activation_checkpointing": "gradient_checkpointing enable_gradient_checkpointing",
    "learner.advantage": "adv_estimator advantage_estimator scale_rewards norm_adv_by_std_in_grpo normalize_rewards",
    "learner.zero_variance": "filter_groups dynamic_sampling use_dynamic_sampling dynamic_filtering",
    "learner.loss.kl_coef": "beta kl_loss_coef init_kl_coef kl_beta kl_penalty_coef reference_policy_kl_penalty",
    "learner.loss.kl_estimator": "kl_loss_type kl_penalty reference_policy_kl_type",
    "learner.loss.kl_in": "use_kl_in_reward",
    "learner.loss.clip_low": "epsilon epsilon_low clip_ratio clip_ratio_low cliprange clip_range eps_clip "
    "ratio_clip_min",
    "learner.loss.clip_high": "epsilon_high clip_ratio_high ratio_clip_max eps_clip_high",
    "learner.loss.aggregation": "loss_type loss_agg_mode token_level_loss",
    "learner.loss.importance_cap": "vllm_importance_sampling_cap tis_imp_ratio_cap importance_sampling_correction "
    "rollout_correction",
    "evaluation.every": "eval_steps test_freq val_period eval_every eval_interval",
    "checkpoint.every": "save_steps save_freq save_period save_interval",
    "checkpoint.keep": "save_total_limit max_ckpt_num max_actor_ckpt_to_keep keep_top_k",
}
ELSEWHERE = {name: key for key, names in _NAMES.items() for name in names.split()}
"""Last part of another framework's dotted key → ours."""
