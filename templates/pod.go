package templates

import (
	"cmp"
	"slices"
	"strings"
	"text/template"

	"gopkg.in/yaml.v3"
)

// EtcdPod is the manifest from which the kubelet of a control-plane node runs
// the server. It has kubeadm's fields and kubeadm's order: to kubeadm, and to
// who compares, it is a manifest of its own, with another image.
type EtcdPod struct {
	AdvertiseClientURLs string // with commas between
	Image               string
	MetricsPort         int
	DataDir             string // absolute path on the host, and in the container
	CertificatesDir     string // likewise
	Args                []Argument
}

// Render returns the text of the manifest.
func (p EtcdPod) Render() ([]byte, error) {
	p.Args = slices.SortedStableFunc(slices.Values(p.Args), func(a, b Argument) int { return cmp.Compare(a.Flag, b.Flag) })
	return render("etcd.yaml.tmpl", template.FuncMap{"yaml": yamlScalar, "argument": podArgument}, p)
}

// podArgument writes a flag the way kubeadm does: one word, true in full.
func podArgument(a Argument) (string, error) {
	if a.Value == "" && !a.Joined {
		a.Value = "true"
	}
	return yamlScalar("--" + a.Flag + "=" + a.Value)
}

// yamlScalar writes a string in one line so that YAML reads the same string.
func yamlScalar(s string) (string, error) {
	node := yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if strings.ContainsAny(s, "\n\r\t") {
		node.Style = yaml.DoubleQuotedStyle
	}
	text, err := yaml.Marshal(&node)
	return strings.TrimSuffix(string(text), "\n"), err
}
