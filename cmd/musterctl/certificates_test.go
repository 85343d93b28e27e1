package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The variables that the client reads are set only when neither its flags nor
// its variables say anything of certificates.
func TestPresentCertificates(t *testing.T) {
	whole := t.TempDir()
	for _, file := range []string{"ca.crt", "healthcheck-client.crt", "healthcheck-client.key"} {
		if err := os.WriteFile(filepath.Join(whole, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := map[string]string{
		"ETCDCTL_CACERT": filepath.Join(whole, "ca.crt"),
		"ETCDCTL_CERT":   filepath.Join(whole, "healthcheck-client.crt"),
		"ETCDCTL_KEY":    filepath.Join(whole, "healthcheck-client.key"),
	}
	for _, test := range []struct {
		name string
		dir  string
		env  map[string]string
		args []string
		want map[string]string
	}{
		{"nothing said", whole, nil, []string{"get", "/", "--prefix"}, all},
		{"other flags", whole, nil, []string{"--endpoints", "https://192.0.2.1:2379", "member", "list"}, all},
		{"a value like a flag", whole, nil, []string{"put", "--", "--cert", "value"}, all},
		{"no directory", "", nil, []string{"get", "/"}, nil},
		{"an empty directory", t.TempDir(), nil, []string{"get", "/"}, nil},
		{"a flag", whole, nil, []string{"get", "/", "--cacert", "other.crt"}, nil},
		{"a flag with its value", whole, nil, []string{"--cert=other.crt", "get", "/"}, nil},
		{"no TLS wanted", whole, nil, []string{"get", "/", "--insecure-transport"}, nil},
		{"a variable", whole, map[string]string{"ETCDCTL_KEY": "other.key"}, []string{"get", "/"}, map[string]string{"ETCDCTL_KEY": "other.key"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for flag := range all {
				t.Setenv(flag, "")
			}
			t.Setenv(certificatesVariable, test.dir)
			for variable, value := range test.env {
				t.Setenv(variable, value)
			}
			if err := presentCertificates(test.args); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for variable := range all {
				if value := os.Getenv(variable); value != "" {
					got[variable] = value
				}
			}
			want := test.want
			if want == nil {
				want = map[string]string{}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
