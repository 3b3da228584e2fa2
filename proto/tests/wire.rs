//! Compares the compiled CRI descriptor with the wire table, row by row and in both directions.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// A row without its remarks: kind, scope, name, number or mode, label or request, type or response.
type Row = [String; 6];

fn row(cells: [&str; 6]) -> Row {
    cells.map(str::to_owned)
}

fn expected() -> BTreeSet<Row> {
    include_str!("cri-v1-wire.tsv")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let cell: Vec<&str> = line.split('\t').collect();
            match cell[0] {
                "rpc" => row([cell[0], cell[1], cell[2], cell[4], cell[5], cell[6]]),
                "field" => {
                    // The last column says "deprecated" where the contract does.
                    let deprecated = cell.get(6).copied().unwrap_or_default();
                    let label = format!("{} {deprecated}", cell[4]);
                    row([cell[0], cell[1], cell[2], cell[3], label.trim(), cell[5]])
                }
                "enum" => row([cell[0], cell[1], cell[2], cell[3], "", ""]),
                "message" => row([cell[0], cell[1], "", "", "", ""]),
                kind => panic!("unknown row kind {kind:?}"),
            }
        })
        .collect()
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn field_row(message: &DescriptorProto, field: &FieldDescriptorProto) -> Row {
    let entry = message.nested_type.iter().find(|nested| {
        nested.name() == last(field.type_name()) && nested.options.as_ref().is_some_and(|o| o.map_entry())
    });
    let (label, kind) = if let Some(entry) = entry {
        let types: Vec<String> = entry.field.iter().map(scalar).collect();
        ("map", format!("map<{}>", types.join(",")))
    } else if field.label() == Label::Repeated {
        ("repeated", scalar(field))
    } else {
        ("optional", scalar(field))
    };
    let deprecated = if field.options.as_ref().is_some_and(|o| o.deprecated()) { "deprecated" } else { "" };
    row([
        "field",
        message.name(),
        field.name(),
        &field.number().to_string(),
        format!("{label} {deprecated}").trim(),
        &kind,
    ])
}

fn scalar(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => last(field.type_name()).to_owned(),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn enum_rows(scope: &str, descriptor: &EnumDescriptorProto, rows: &mut BTreeSet<Row>) {
    let name = if scope.is_empty() { descriptor.name().to_owned() } else { format!("{scope}.{}", descriptor.name()) };
    for value in &descriptor.value {
        rows.insert(row(["enum", &name, value.name(), &value.number().to_string(), "", ""]));
    }
}

fn compiled() -> BTreeSet<Row> {
    let set = FileDescriptorSet::decode(vaina_proto::cri::DESCRIPTOR).expect("the descriptor that the build wrote");
    let mut rows = BTreeSet::new();
    for file in &set.file {
        for message in &file.message_type {
            if message.field.is_empty() {
                rows.insert(row(["message", message.name(), "", "", "", ""]));
            }
            for field in &message.field {
                rows.insert(field_row(message, field));
            }
            for nested in &message.enum_type {
                enum_rows(message.name(), nested, &mut rows);
            }
        }
        for descriptor in &file.enum_type {
            enum_rows("", descriptor, &mut rows);
        }
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                let mode = if method.server_streaming() { "stream" } else { "unary" };
                assert!(!method.client_streaming(), "no CRI call streams requests: {}", method.name());
                rows.insert(row([
                    "rpc",
                    &name,
                    method.name(),
                    mode,
                    last(method.input_type()),
                    last(method.output_type()),
                ]));
            }
        }
    }
    rows
}

#[test]
fn descriptor_matches_the_wire_table_in_both_directions() {
    let (expected, compiled) = (expected(), compiled());
    let missing: Vec<_> = expected.difference(&compiled).collect();
    let extra: Vec<_> = compiled.difference(&expected).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing from the proto: {missing:#?}\nnot in the table: {extra:#?}"
    );
    assert_eq!(expected.iter().filter(|row| row[0] == "rpc").count(), 43);
}
