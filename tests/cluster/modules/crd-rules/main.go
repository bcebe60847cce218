// Command crd-rules judges a CustomResourceDefinition as the API servers of several Kubernetes minors would: its schema,
// and each CEL rule in it, compiled with the libraries that a server of that minor gives new rules, costs included.
//
//	crd-rules 1.30 1.31 < crd.yaml
//
// It prints what they refuse, one line each, and exits with 1 where they refuse anything.
//
// Given a ValidatingAdmissionPolicy instead it judges that, and then asks it about the objects in the documents that
// follow ({object: ..., oldObject: ...}). For each it prints one line of JSON: what the policy refuses it for.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	servers "k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/component-base/compatibility"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := judge(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func judge(minors []string, in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	documents := bytes.Split(text, []byte("\n---\n"))
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(documents[0], &kind); err != nil {
		return err
	}
	questions, err := readQuestions(documents[1:])
	if err != nil {
		return err
	}
	refused := 0
	for _, minor := range minors {
		server, err := version.ParseMajorMinor(minor)
		if err != nil {
			return fmt.Errorf("%s is no minor of Kubernetes: %w", minor, err)
		}
		if err := pretend(server); err != nil {
			return err
		}
		faults := 0
		if kind.Kind == "ValidatingAdmissionPolicy" {
			faults, err = ask(minor, documents[0], questions, out)
		} else {
			faults, err = define(minor, documents[0], out)
		}
		if err != nil {
			return err
		}
		refused += faults
	}
	if refused > 0 {
		return fmt.Errorf("%d faults", refused)
	}
	return nil
}

// define prints what a server of this program's pretended minor refuses of a CRD, and returns the number of faults.
func define(minor string, text []byte, out io.Writer) (int, error) {
	definition, err := read(text)
	if err != nil {
		return 0, err
	}
	faults := validation.ValidateCustomResourceDefinition(context.Background(), definition)
	for _, fault := range faults {
		fmt.Fprintf(out, "%s: %s\n", minor, strings.ReplaceAll(fault.Error(), "\n", " "))
	}
	return len(faults), nil
}

// pretend makes this program's libraries those of a server of that minor. A rule that is new must also compile on the
// minor before, to which an administrator may go back.
func pretend(server *version.Version) error {
	effective := compatibility.NewEffectiveVersionFromString(server.String(), "", "")
	effective.SetMinCompatibilityVersion(server.SubtractMinor(1))
	registry := servers.DefaultComponentGlobalsRegistry
	registry.Reset()
	return registry.Register(compatibility.DefaultKubeComponent, effective, nil)
}

func read(text []byte) (*apiextensions.CustomResourceDefinition, error) {
	var external v1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &external); err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	install.Install(scheme)
	scheme.Default(&external)
	internal := &apiextensions.CustomResourceDefinition{}
	if err := scheme.Convert(&external, internal, nil); err != nil {
		return nil, err
	}
	return internal, nil
}
