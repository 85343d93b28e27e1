package inventory

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"
)

// schemaFile is what the examples point editors at.
const schemaFile = "../../examples/inventory.schema.json"

// TestSchemaIsCurrent compares the shipped JSON Schema with the one that
// follows from the types and their comments.
func TestSchemaIsCurrent(t *testing.T) {
	got := schema(t)
	if *update {
		if err := os.WriteFile(schemaFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s does not follow from the types; -update rewrites it", schemaFile)
	}
}

func schema(t *testing.T) []byte {
	t.Helper()
	r := &jsonschema.Reflector{
		FieldNameTag:   "yaml",
		ExpandedStruct: true,
		Mapper:         mapType,
	}
	if err := r.AddGoComments("muster/provision/inventory", "."); err != nil {
		t.Fatal(err)
	}
	s := r.Reflect(&Cluster{})
	s.ID = ""
	s.Title = "muster inventory"

	// A controller may be written as its address alone.
	host := s.Definitions["Host"]
	s.Definitions["Controller"] = &jsonschema.Schema{
		OneOf: []*jsonschema.Schema{
			{Type: "string", Description: "IP address or name of the machine."},
			{Ref: "#/$defs/Host"},
		},
	}
	controllers, ok := s.Properties.Get("controllers")
	if host == nil || !ok {
		t.Fatal("the types have changed: there is no Host or no controllers")
	}
	controllers.Items = &jsonschema.Schema{Ref: "#/$defs/Controller"}
	apiservers, ok := s.Definitions["Kubernetes"].Properties.Get("apiservers")
	if !ok {
		t.Fatal("the types have changed: there is no apiservers")
	}
	apiservers.Items = &jsonschema.Schema{OneOf: []*jsonschema.Schema{
		{Type: "string", Description: "IP address or name of the machine."},
		{Ref: "#/$defs/APIServer"},
	}}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

// mapType describes the types whose Go form differs from what is written.
func mapType(t reflect.Type) *jsonschema.Schema {
	variable := &jsonschema.Schema{Type: "string", Pattern: `\$\{.+\}`}
	switch t {
	case reflect.TypeFor[Lifetime]():
		return &jsonschema.Schema{Type: "string", Examples: []any{"365d", "10y", "8760h"}}
	case reflect.TypeFor[Topology]():
		return &jsonschema.Schema{Type: "string", Enum: []any{External, Stacked}}
	case reflect.TypeFor[KeyAlgorithm]():
		return &jsonschema.Schema{Type: "string", Enum: []any{ECDSAP256, RSA2048, RSA4096}}
	case reflect.TypeFor[int](): // a port
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{
			{Type: "integer", Minimum: "1", Maximum: "65535"}, variable,
		}}
	case reflect.TypeFor[map[string]string]():
		return &jsonschema.Schema{Type: "object", AdditionalProperties: &jsonschema.Schema{
			OneOf: []*jsonschema.Schema{{Type: "string"}, {Type: "number"}, {Type: "boolean"}},
		}}
	}
	return nil
}

func TestExamplesNameTheSchema(t *testing.T) {
	for _, path := range glob(t, "../../examples/*.yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := "# yaml-language-server: $schema=" + filepath.Base(schemaFile) + "\n"
		if !strings.HasPrefix(string(text), want) {
			t.Errorf("%s does not start with %q", path, want)
		}
	}
}
