"""Tests that try many of one kind: the suite runs some of them, `-m stress` a share of the others, and with
SAM3LITE_STRESS=all all of them.

By function, the step from one case that the suite runs to the next; None: all cases are for `-m stress`. What a test
shows of a kind, its first case shows; the others are there for what nobody thought of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

EVERY: dict[str, int | None] = {
    # checkpoints and plans
    "test_only_the_misshapen_tensor_is_blamed": 8,
    "test_models_of_other_depths_and_widths_have_sound_plans": 3,
    "test_another_spelling_changes_nothing": 3,
    "test_why_a_shape_does_not_allow_the_operation_is_told": 2,
    "test_another_table_is_a_finding_and_convert_notes_it": 2,
    "test_every_tensor_is_that_of_the_source_to_the_bit": 3,
    "test_a_model_of_other_sizes_is_inferred_back": 3,
    "test_a_kind_is_named_with_what_to_do": 2,
    "test_damage_never_ends_in_another_error": 3,
    "test_a_prefix_changes_nothing": 3,
    "test_the_keys_of_a_layout_are_told_as_those_of_the_released_file": 3,
    "test_each_tensor_is_made_of_those_that_the_map_names": 2,
    "test_a_file_whose_bytes_tell_nothing_is_told_by_its_name": 3,
    "test_a_missing_component_is_named": 3,
    "test_a_rule_can_be_read_in_both_directions": 3,
    "test_the_plan_is_exactly_the_list_of_the_target": 3,
    "test_the_plan_of_a_released_file_is_exactly_the_target_list": 3,
    "test_a_prefix_is_another_spelling_of_the_same_keys": 2,
    "test_parts_that_do_not_fit_together_are_refused": 2,
    "test_a_missing_part_of_a_joined_table_is_reported_by_name": 2,
    "test_detector_is_a_prefix_in_front_only": 2,
    "test_a_broken_shape_in_a_target_table_is_a_fault_of_the_table": 2,
    "test_the_table_is_what_the_library_computes": None,
    # what is replaced, disks and interrupted runs
    "test_what_others_did_to_the_folder_meanwhile_is_not_lost": 9,
    "test_what_appears_where_nothing_was_is_not_lost": 8,
    "test_a_folder_that_was_moved_away_meanwhile_is_kept_and_the_new_one_stands_in_its_place": None,
    "test_another_link_or_mode_of_the_source_is_no_change_of_it": 12,
    "test_another_link_meanwhile_stops_no_command": None,
    "test_whichever_call_to_the_system_fails_the_old_or_the_new_one_is_there": 16,
    "test_marks_alone_are_no_other_content": 2,
    # the Hub
    "test_a_fault_that_passes": 5,
    "test_the_set_is_converted_to_the_bytes_of_the_plain_file": 3,
    "test_shards_a_text_encoder_and_a_cast": 3,
    "test_one_content_under_two_names": 2,
    "test_of_several_files_the_newer_naming_wins": 3,
    "test_a_reference_that_leads_out_of_the_cache": 3,
    "test_odd_tokens_are_not_shown": 3,
    "test_all_needs_the_listing": 2,
    "test_a_dry_run_and_explain_read_the_index_alone_and_say_so": 2,
    "test_a_refusal": 3,
    "test_a_wrong_file_of_certificates_is_named_with_its_variable": None,
    # conversion
    "test_a_class_finds_every_tensor_and_holds_the_folders": 4,
    "test_the_loading_example_runs": 4,
    "test_the_metadata_is_what_the_hub_takes": 3,
    "test_a_checkpoint_of_other_sizes_loads_too": 3,
    "test_what_is_no_clip_tokenizer_is_refused": 4,
    "test_the_ids_are_the_originals": 2,
    "test_one_lost_file_of_a_tokenizer_in_both_forms_comes_back": None,
    "test_a_source_that_changes_while_it_is_read_is_not_trusted": 4,
    "test_a_damaged_receipt_is_not_current": 5,
    "test_a_printed_rule_gives_the_bytes_of_the_plain_file": 6,
    "test_attention_apart_is_one_cause_with_rules_that_take_it_as_it_is": 2,
    "test_planning_reads_no_tensor_data": 3,
    "test_every_spelling_gives_the_same_model_file": 4,
    "test_a_signal_midway_leaves_the_earlier_folder_and_nothing_else": 2,
    "test_a_refusal_says_what_it_is_and_what_to_do_on_one_screen": 3,
    "test_a_fault_in_a_process_of_its_own_has_no_traceback": 3,
    "test_help_imports_nothing_heavy": 3,
    "test_a_push_that_fails_keeps_the_folder_and_says_how_to_go_on": 2,
    "test_video_folders_of_all_that_have_a_tracker_and_one_repository_of_a_video_model": None,
    "test_sam3s_text_encoder_pools_the_row_of_the_end_token": 2,
    "test_a_tracker_of_other_sizes_loads": None,
    "test_a_configuration_without_the_trackers_image_size_would_be_silently_another": None,
    "test_the_title_says_what_the_source_is": 2,
    "test_sam31_by_its_folder_takes_checkpoints_alone_and_says_what_it_leaves": None,
    "test_a_wrapped_file_gives_the_bytes_of_the_plain_one": None,
    "test_other_options_are_not_current": 3,
    "test_a_prompt_becomes_the_ids_of_the_original_tokenizer": 3,
    "test_a_page_is_made_of_whatever_a_document_may_lack": 2,
    "test_every_tensor_is_the_originals_under_its_name": 2,
    "test_the_same_record_gives_the_same_page": 3,
    "test_a_folder_that_is_not_whole_is_refused_by_name": 2,
    "test_the_command_that_inspect_ends_with_converts_and_both_say_what_the_file_is": 2,
    "test_the_line_that_convert_ends_with_loads_the_folder": 3,
    "test_the_licence_is_named_as_the_source_names_it": 3,
    "test_without_its_tables_a_folder_is_not_taken_for_another_layout_s": 2,
    "test_every_checkpoint_is_completed_to_an_alias": 3,
    "test_the_loading_example_of_the_card_runs_in_the_folder": 2,
    "test_convert_proves_it_at_once": 2,
    "test_a_receipt_is_read_back_without_loss": 2,
    "test_structure_that_does_not_fit_is_a_mismatch": 2,
    "test_a_cast_is_torchs_and_integers_stay": 2,
    "test_only_a_file_of_its_own_is_replaced": 2,
    "test_each_fault_of_a_file_has_its_exit_code_and_leaves_nothing": 3,
    "test_what_is_public_says_what_it_is": 3,
    "test_imports_lead_down": 3,
    "test_a_fault_while_the_folders_change_places_brings_the_earlier_one_back": 2,
    "test_auto_model_finds_the_class": None,
    "test_files_that_are_gone_are_made_again_and_never_deleted_there": 2,
    "test_every_option_reaches_every_file": 2,
    "test_a_new_file_upstream_is_converted_with_overwrite": 3,
    "test_one_that_fails_does_not_stop_the_rest": 2,
    "test_convert_keeps_the_rows_that_are_called": 2,
    "test_every_tensor_of_the_whole_structure_is_what_torch_makes_of_its_source": 2,
    "test_tensors_that_are_not_contiguous": 2,
    "test_a_partial_conversion_writes_the_same_tensors": 2,
    "test_the_same_input_gives_the_same_bytes": 2,
    "test_a_source_of_another_precision_keeps_it": 2,
    "test_weights_that_are_no_floating_point_numbers_are_named": 2,
    "test_without_help_of_the_kernel_the_folder_is_the_same": 2,
    "test_other_options_do_not_replace_the_first": 2,
    "test_quantised_graphs_go_whole_with_what_they_lose": None,
    "test_a_fault_midway_leaves_the_earlier_folder_and_nothing_else": 2,
    "test_neither_convert_nor_verify_imports_transformers": None,
    "test_tables_in_two_parts_are_dropped_and_held_against_the_formula": 2,
    "test_any_other_number_of_levels_is_refused": 2,
    "test_one_flipped_byte_of_the_source_is_noticed": 2,
    # verification, and the way back
    "test_every_tensor_comes_back": 4,
    "test_what_was_trained_runs_in_the_originals_code": 3,
    "test_what_the_library_saves_of_a_video_model_is_proven_where_it_reads_it_back": None,
    "test_the_graphs_of_a_whole_detector_are_too_with_taps_and_another_size": None,
    "test_a_row_of_a_joined_table_is_one_tensor_of_the_original": 2,
    "test_no_changed_folder_is_proven": 2,
    "test_a_folder_that_loads_wrong_is_not_proven": 6,
    "test_a_folder_that_loads_right_is_proven": 4,
    "test_a_right_folder_is_recognised_with_and_without_a_receipt": 3,
    "test_each_of_the_two_tables_is_compared": 2,
    "test_a_field_of_the_image_processor_is_named": 8,
    "test_a_file_that_cannot_be_read_is_named": 3,
    "test_our_own_folders_are_proven": 3,
    "test_a_hostile_graph_is_a_finding_in_words": 6,
    "test_parity_runs_no_hostile_graph": 20,
    "test_two_copies_that_differ_are_refused_with_both_names": 2,
    "test_relatives_are_compared_where_they_are_alike": 3,
    "test_the_code_of_a_wrong_tensor": 3,
    "test_without_a_receipt_the_tables_tell_the_names_of_a_released_file": 3,
    "test_a_field_of_the_video_processor_is_named": 3,
    "test_ten_changed_tensors_are_changed_and_no_others": 2,
    "test_with_the_checkpoint_every_tensor_is_its_own_to_the_bit": 2,
    "test_a_field_of_the_tokenizer_is_named": 3,
    "test_parity_is_not_exact_for_a_folder_that_loads_wrong": 3,
    "test_other_values_are_named": 3,
    "test_parity_is_not_exact_where_transformers_loads_something_else": 3,
    "test_a_folder_that_changes_while_it_is_read_is_noticed": 3,
    "test_what_a_graph_says_of_itself_has_to_be_so": 3,
    "test_graphs_of_sam3s_own_are_proven_and_an_edited_one_is_told_by_its_node": 2,
    "test_a_quantised_graph_is_proven_with_its_folder": 2,
    "test_of_an_image_student_the_text_encoder_has_a_graph_and_the_detector_is_refused_in_words": None,
    "test_a_cast_that_overflows_is_named_and_not_proven_unless_it_was_allowed": 2,
    "test_a_source_of_mixed_precision_is_proven": 2,
    "test_a_dropped_points_projector_in_the_place_of_the_boxes_is_named": 2,
    "test_a_folder_that_was_converted_from_a_cast_copy_is_proven_up_to_the_cast": 2,
    "test_it_is_made_again_to_the_byte_and_says_of_what": 2,
    "test_a_graph_that_somebody_else_wrote_is_not_replaced": 2,
    # parity
    "test_a_fault_is_found_where_it_was_made_and_named": 6,
    "test_a_fault_is_named_in_its_layer": 6,
    "test_a_fault_is_found_in_its_place_and_named": 4,
    "test_a_right_port_is_not_suspected": 4,
    "test_no_fault_is_missed": 3,
    "test_a_broken_comparison_does_not_pass_its_own_test": 4,
    "test_every_activation_is_that_of_the_real_original": 3,
    "test_every_activation_of_a_full_size_encoder_is_the_originals": 3,
    "test_a_fault_of_each_row_is_caught_where_it_was_made": 4,
    "test_the_figures_are_those_of_one_go": 2,
    "test_behaviour_over_many_prompts_is_that_of_each": None,
    "test_the_originals_ids_are_those_of_its_tokenizer": 2,
    "test_the_weights_are_exact_the_behaviour_differs_and_the_recipe_is_exact": 3,
    "test_parity_says_that_nothing_runs_it": 4,
    "test_a_fault_in_it_is_found": 3,
    "test_it_is_converted_and_proven": 3,
    "test_with_a_loader_of_ours_and_another_detector_parity_runs": None,
    "test_a_right_model_is_judged_right_at_every_tap": 3,
    "test_swapped_q_and_k_are_found_at_their_layer": 2,
    "test_what_the_words_rest_on_is_said": None,
    "test_a_right_graph_is_within_four_floors_at_every_tap": 3,
    "test_every_activation_of_a_graph_is_the_originals": 3,
    "test_a_hostile_graph_is_refused_before_a_runtime_sees_it": 8,
    "test_what_does_not_go_with_a_graph_is_refused_in_words": 2,
    "test_the_self_test_takes_a_step_for_the_place_of_its_layer": None,
    "test_a_folder_is_tested_too_and_one_that_differs_is_not": None,
    "test_a_fault_that_the_inputs_cannot_reveal_is_listed": None,
    "test_the_recipe_cuts_the_table_of_such_a_folder_and_is_the_originals": None,
    "test_the_filled_level_is_thrown_away": None,
    "test_packed_imports_no_transformers_and_json_is_the_only_thing_on_stdout": None,
    "test_it_needs_torch_and_safetensors_alone": None,
    "test_the_judge_says_what_the_run_said_where_it_passed": 2,
    "test_with_matched_settings_it_gives_the_originals_result": 2,
    "test_a_tokenizer_that_misbehaves_is_a_clear_error": 2,
    "test_a_fault_is_found_where_it_was_put": 12,
    "test_a_fault_whose_need_is_not_met_changes_nothing": 3,
    "test_every_linear_layer_becomes_int8_with_a_scale_for_each_output": 2,
    "test_openvino_runs_the_same_graph": None,
    "test_a_graph_of_an_exporter_is_judged_on_its_outputs": None,
    "test_the_graphs_of_a_folder_are_compared": 2,
    "test_a_fault_in_a_graph_is_named_by_its_node": None,
    "test_a_wrong_field_of_the_config_is_found_where_it_acts_first": 3,
    "test_every_format_gives_the_same_verdict": 3,
    "test_a_fault_in_the_weights_is_in_the_first_verdict_and_not_in_the_causes": 2,
    "test_each_cause_moves_the_features_as_far_as_worked_out_by_hand": None,
    "test_sdpa_is_within_the_measured_tolerance": 3,
    "test_a_cast_folder_is_compared_in_its_dtype": 2,
    "test_other_ways_to_write_it": 3,
    "test_the_detectors_taps_are_those_that_parity_reads": 2,
    "test_every_activation_is_that_of_the_real_detector": 3,
    "test_one_flipped_bit_is_found_in_its_layer_with_the_tensors_name": 3,
    "test_the_json_has_every_field_of_the_contract": 3,
    "test_gross_faults_are_named_in_half_precision": 2,
    "test_q_and_k_swapped_in_one_layer": 2,
    "test_a_fault_that_is_found_in_another_layer_is_missed": None,
    "test_its_config_is_read_where_the_video_model_has_it": None,
    "test_rows_that_are_not_called_are_a_cause_of_their_own": 2,
    "test_a_fault_put_into_a_graph_is_found_in_its_layer_and_named": 2,
    "test_every_activation_of_a_graph_of_sam3s_own_is_the_originals": 2,
    "test_the_shortest_contexts": 2,
    "test_causes_known_for_a_layer_are_named_at_a_step_of_it_too": 3,
    "test_a_right_conversion_is_within_its_noise": 2,
    "test_a_folder_of_a_whole_detector_and_its_shards_are_exact": 2,
    "test_the_cause_is_named_with_and_without_isolated_activations": 2,
    "test_other_lengths_resize_the_table_on_both_sides": 3,
    "test_the_worst_prompt_is_named_wherever_it_stands": 2,
    # Two cases of one kind: the suite runs the one, the stress tests the other.
    "test_small_chunks_make_the_same_folder": 2,
    "test_shards_are_converted_to_the_bytes_of_the_plain_file": 2,
    "test_explain_parity_and_record_read_the_shards": 2,
    "test_a_cast_folder_loads_in_its_dtype": 2,
    "test_a_card_has_the_structure_of_a_harmless_one": 2,
    "test_wrong_bytes_are_noticed_by_every_command": 2,
    "test_a_graph_reads_the_folders_own_bytes_and_computes_what_the_packed_encoder_does": 2,
    "test_a_parity_page_holds_what_the_run_found": 2,
    "test_a_report_that_cannot_be_written_loses_nothing_of_the_run": 2,
    "test_half_precision_is_held_against_the_original_in_half_precision": 2,
    "test_a_neck_level_too_few_is_named": 2,
    # processes of their own
    "test_jinja2_is_loaded_for_a_report_only": None,
    "test_a_process_of_its_own_gives_the_same_bytes_too": None,
    "test_a_reader_that_goes_away_leaves_the_exit_code_of_the_check": None,
    "test_without_a_network_a_cached_file_works": None,
    "test_the_text_encoder_of_its_detector_is_exact": 2,
}


# `-m stress` runs two of seven of the cases that EVERY leaves to it, and some of these tests, which are stress tests
# themselves: the step from one to the next. It shares no factor with the numbers of values that are combined, so that
# each value has its turn. SAM3LITE_STRESS=all: all.
SPARSE = {
    "test_a_call_fails_while_an_earlier_conversion_is_replaced": 11,
    "test_a_call_fails_while_a_new_folder_is_written": 7,
    "test_a_call_fails_while_a_file_is_replaced": 7,
    "test_an_odd_row_is_refused_by_name_or_left_out": 2,
    "test_an_odd_row_does_not_stop_the_batch": 3,
    "test_an_answer_of_another_kind": 4,
    "test_an_odd_refusal": 4,
    "test_a_connection_that_speaks_nonsense": 3,
    "test_odd_headers_of_a_file": 2,
    "test_odd_answers_to_a_range": 2,
    "test_a_folder_with_an_odd_row_is_not_judged_without_it": 3,
    "test_odd_answers_to_the_ranges_of_a_folder": 2,
    "test_odd_small_files_of_a_folder": 3,
    "test_an_odd_answer_to_a_push": 3,
    "test_an_odd_receipt_on_the_hub_is_not_replaced": 3,
    "test_every_odd_file_is_held": 4,
    "test_a_file_that_cannot_be_opened_is_held": 5,
    "test_what_somebody_did_while_a_run_stood_still_is_there_afterwards": 11,
    "test_what_appears_where_nothing_was_while_a_run_stood_still_is_kept": 7,
    "test_a_folder_that_went_while_a_run_stood_still_makes_room": 11,
    "test_what_the_card_offers_runs": 5,
    "test_each_fault_is_caught_where_it_was_made": 2,
    "test_detectors_of_other_weights_are_too": 5,
    # Six graphs in three runtimes: with this step each runtime has its turn, and four of the graphs.
    "test_every_fault_put_into_a_graph_is_found_in_its_layer_and_named": 5,
}
ALL = os.environ.get("SAM3LITE_STRESS") == "all"


def without_rare(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests but for the stress tests that only SAM3LITE_STRESS=all runs; the first of each kind always stays."""
    seen: dict[tuple[str, str], int] = {}
    kept = []
    for item in items:
        name = item.name.partition("[")[0]
        if ALL or not (name in EVERY or name in SPARSE) or not item.get_closest_marker("stress"):
            kept.append(item)
            continue
        number = seen[item.path.as_posix(), name] = seen.get((item.path.as_posix(), name), -1) + 1
        # 0, 3, 7, 10, ...: of two layouts that take turns, as of three, each has its turn.
        if number % SPARSE[name] == 0 if name in SPARSE else number % 7 in (0, 3):
            kept.append(item)
    return kept


def leave_to_stress(items: Iterable[pytest.Item]) -> None:
    """Mark as `stress` the cases that the suite does not run. The order of ``items`` counts their cases by file."""
    seen: dict[tuple[str, str], int] = {}
    for item in items:
        name = item.name.partition("[")[0]
        if name not in EVERY or item.get_closest_marker("stress"):
            continue
        number = seen[item.path.as_posix(), name] = seen.get((item.path.as_posix(), name), -1) + 1
        every = EVERY[name]
        if every is None or number % every:
            item.add_marker(pytest.mark.stress)
