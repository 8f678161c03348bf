"""The stages of a run, one a module, in order. Each gives its steps once the stages before it are finished.

====  ===========  ==============================================================================
file  stage        what it leaves in the run directory
====  ===========  ==============================================================================
      data         data/{train,validation,test}.jsonl, data/info.json
      teacher      teacher/model/, teacher/scores.json
      calibrate    calibrate/calibration.safetensors
      search       search/front.json (and the price table, sensitivities and the study beside it)
      distill      distill/<id>/model/, distill/<id>/result.json for each baseline and candidate
      certify      certify/<id>/result.json: ranges on training texts, predicted cost
      verify       verify/choice.json, verify/<id>/result.json
      export       model/
      report       record.json, report.html, report.md
====  ===========  ==============================================================================
"""
