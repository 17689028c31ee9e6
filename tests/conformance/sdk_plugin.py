"""A pytest plugin that puts our provider, tracer and spans where the tests of opentelemetry-sdk look for the SDK's.

    pytest -p tests.conformance.sdk_plugin <checkout>/opentelemetry-sdk/tests/trace/test_trace.py

It only translates constructor arguments; what the tests then see is ours.
"""

from __future__ import annotations

import importlib
from typing import Any

from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, SpanKind, set_span_in_context

from django_obs.traces.limits import SpanLimits
from django_obs.traces.provider import KIND_FIELDS, Tracer, TracerProvider
from django_obs.traces.span import LocalTrace, Span

SDKSpanLimits = sdk.SpanLimits


class SDKSampler:
    """Asks a sampler of the SDK."""

    def __init__(self, sampler: sampling.Sampler) -> None:
        self.sampler = sampler

    def sampled(self, parent: Any, trace_id: int, name: str, attributes: Any) -> bool:
        context = set_span_in_context(NonRecordingSpan(parent)) if parent is not None else None
        return self.sampler.should_sample(context, trace_id, name, SpanKind.INTERNAL, attributes).decision.is_sampled()


def our_limits(limits: Any) -> SpanLimits:
    return SpanLimits(
        attributes=limits.max_span_attributes,
        events=limits.max_events,
        links=limits.max_links,
        event_attributes=limits.max_event_attributes,
        link_attributes=limits.max_link_attributes,
        span_value_length=limits.max_span_attribute_length,
        value_length=limits.max_attribute_length,
    )


class Provider(TracerProvider):
    """Ours, with the constructor of the SDK's."""

    def __init__(
        self,
        sampler: Any = None,
        resource: Any = None,
        shutdown_on_exit: bool = True,
        active_span_processor: Any = None,
        id_generator: Any = None,
        span_limits: Any = None,
        **_: Any,
    ) -> None:
        self.given_sampler = sampler or sampling._get_from_env_or_default()
        limits = our_limits(span_limits) if span_limits is not None else None
        super().__init__(SDKSampler(self.given_sampler), limits=limits, resource={})
        self._sdk_resource = resource if resource is not None else Resource.create({})
        if active_span_processor is not None:
            self.processors = (active_span_processor,)


def make_span(
    name: str,
    context: Any,
    parent: Any = None,
    sampler: Any = None,
    trace_config: Any = None,
    resource: Any = None,
    attributes: Any = None,
    events: Any = None,
    links: Any = (),
    kind: SpanKind = SpanKind.INTERNAL,
    span_processor: Any = None,
    limits: Any = None,
    **_: Any,
) -> Span:
    provider = Provider(resource=resource, span_limits=limits, active_span_processor=span_processor)
    tracer = Tracer(provider, "test")
    # Some tests give None or a mock.
    is_context = isinstance(context, SpanContext) and type(context) is SpanContext
    trace_id, span_id, _, flags, state, _ = context if is_context else INVALID_SPAN_CONTEXT
    trace = LocalTrace(provider, trace_id, span_id, flags, state)
    span = Span(tracer, trace, span_id, 0, parent, name, KIND_FIELDS[kind], {}, 0)
    if attributes:
        span.set_attributes(attributes)
    for event in events or ():
        span.add_event(event.name, event.attributes, event.timestamp)
    for link in links or ():
        span.add_link(link.context, link.attributes)
    return span


def substitute() -> None:
    for name, ours in (("TracerProvider", Provider), ("_Span", make_span), ("Tracer", Tracer)):
        setattr(sdk, name, ours)


def reload(module: Any) -> Any:
    # Some tests load the SDK anew, to see what it makes of the environment; the ones after them would then test it.
    module = importlib_reload(module)
    substitute()
    return module


importlib_reload, importlib.reload = importlib.reload, reload
substitute()

# Tests that look at the SDK's insides or at what docs/traces.md argues to do otherwise.
PRIVATE = "tracer configurators are private"
EXCEPTIONS = {
    "test_get_tracer_sdk": "reads private attributes of the SDK's tracer",
    "test_get_tracer_sdk_sets_default_tracer_config_if_configurator_raises": PRIVATE,
    "test_start_span_returns_invalid_span_if_not_enabled": PRIVATE,
    "test_default_tracer_configurator": PRIVATE,
    "test_rule_based_tracer_configurator": PRIVATE,
    "test_rule_based_tracer_configurator_default_when_rules_dont_match": PRIVATE,
    "test_set_tracer_configurator_sets_default_tracer_config_if_configurator_raises": PRIVATE,
    "test_no_deprecated_warning": "hands mocks in as names",
    "test_shutdown": "runs the SDK in a subprocess; our exporter is flushed by the guard, not by atexit",
    "test_tracer_provider_accepts_concurrent_multi_span_processor": "processors are added, not given",
    "test_tracer_provider_updates_process_dependent_resource_after_fork": "runs the SDK in a subprocess",
    "test_default_sampler": "looks for the SDK's class",
    "test_default_sampler_type": "the settings make the sampler",
    "test_ratio_sampler_with_env": "the settings make the sampler",
    "test_ratio_sampler_with_env_arg_lower_boundary": "the settings make the sampler",
    "test_ratio_sampler_with_env_arg_upper_boundary": "the settings make the sampler",
    "test_ratio_sampler_with_negative_env_arg_does_not_raise": "the settings make the sampler",
    "test_ratio_sampler_with_out_of_range_env_arg_does_not_raise": "the settings make the sampler",
    "test_sampler_with_env": "the settings make the sampler",
    "test_invalid_instrumentation_info": "reads attributes of the SDK's tracer",
    "test_instrumentation_info": "waits for a DeprecationWarning",
    "test_span_processor_for_source": "reads private attributes of the SDK's span",
    "test_update_resource": "resources are not merged into a provider",
    "test_default_span_resource": "the name of a service without a name has the executable, as the conventions ask",
    "test_attributes": "a list that is changed after it was set is exported as it is then",
    "test_invalid_attribute_values": "values are checked when they are encoded, without a warning",
    "test_record_exception_fqn": "needs the package of the tests to have a certain name",
    "test_span_override_start_and_end_time": "start() is not in the API; spans are born started",
    "test_start_accepts_context": "start() is not in the API; spans are born started",
    "test_start_span": "start() is not in the API; spans are born started",
    "test_status_cannot_set_unset": "misuse of an ended span is reported once per process",
    "test_tracer_provider_init_default": "id generators are not exchangeable",
}


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    left_out = [item for item in items if item.originalname in EXCEPTIONS]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item.originalname not in EXCEPTIONS]
